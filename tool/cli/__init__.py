"""The command line: click, the terminal, and one module for each command below ``commands``.

It may import every package; no package imports it.
"""
