"""What is behind the command ``ntkfast``: its commands, their files, benchmark and demo."""
