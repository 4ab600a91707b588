"""Cost of the schedule of the method's released code."""
