"""Many runs on one base: rows, groups of them in one program, and what came of them."""
