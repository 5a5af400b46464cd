"""Runs a Python file as a script in a forked process: `python_file FILE FOLDER`, with FOLDER as working directory."""

import atexit
import os
import runpy
import sys

if __name__ == "__main__":
    file, folder = sys.argv[1:]
    os.chdir(folder)
    sys.argv = [file]
    atexit._clear()  # what the server that this process is forked from has registered
    runpy.run_path(file, run_name="__main__")
    atexit._run_exitfuncs()  # a forked process ends without them
