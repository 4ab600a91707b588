"""A comparison of TPE and ASHA with random search on digits."""
