"""The command line: one file a command, each with make_parser() and run().
May import: every room.
Start with main.py; options.py makes options of the settings.
"""
