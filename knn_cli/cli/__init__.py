"""The command line. One module per command, which parses, calls one function and prints."""
