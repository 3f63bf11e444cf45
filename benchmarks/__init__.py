"""What the project's authors compare paddlevit with; README.md says how. Not part of the installed package."""
