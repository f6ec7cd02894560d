"""The command line: one thin module a command. Importing any of it loads no torch."""
