"""Trackers: where a run can be watched, beside the JSON files in its folder."""
