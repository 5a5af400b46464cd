"""From files and datasets to conversations: sources give raw rows, formats parse them."""
