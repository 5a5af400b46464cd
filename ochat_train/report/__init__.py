"""What people read: tables and a progress line for a terminal, HTML pages with pictures."""
