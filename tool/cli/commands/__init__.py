"""One file for each command: its options, one call into the domain, one report.

A file here may import every package; nothing imports it but ``tool.cli.app``, when the command is called.
"""
