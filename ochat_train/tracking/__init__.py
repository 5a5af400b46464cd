"""Trackers: places outside of the run folder's JSON files that a run can be watched in."""
