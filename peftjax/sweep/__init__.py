"""Many runs on one base: rows, groups of rows in one program, and their results."""
