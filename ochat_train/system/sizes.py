"""Sizes in bytes."""

GIB = 2**30  # sizes of memory and files are shown in GiB
