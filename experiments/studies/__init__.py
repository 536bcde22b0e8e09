"""The studies of this project: protocols, results, claims and figures."""
