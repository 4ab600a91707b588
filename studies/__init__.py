"""Studies of raymi: their programs and their results, which the package does not ship."""
