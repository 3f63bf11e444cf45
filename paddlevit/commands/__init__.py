"""The commands: argv -> parts of the package -> what a person reads."""
