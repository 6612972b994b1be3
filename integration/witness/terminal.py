"""Runs a command as a person at a terminal does who types one line.

    terminal.py LINE COMMAND [ARGUMENT…]

Only stdin is the terminal; stdout, stderr and the exit status are the command's own.
"""

import os
import pty
import subprocess
import sys


def main():
    line, *command = sys.argv[1:]
    terminal, stdin = pty.openpty()
    child = subprocess.Popen(command, stdin=stdin)
    os.write(terminal, line.encode() + b"\n")
    sys.exit(child.wait())


main()
