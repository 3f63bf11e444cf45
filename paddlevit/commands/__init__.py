"""The tools beside training: one module each, argv -> parts of the package -> what a person reads."""
