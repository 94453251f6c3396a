"""The mechanism: turns a launch plan into a running sandbox."""
