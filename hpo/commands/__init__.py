"""The command line: one module per command, and what they share.

Commands turn options into plans, call what does the work, and print what it returns; they decide nothing about a study.
They import what is heavy when they run, so that help answers at once.
"""
