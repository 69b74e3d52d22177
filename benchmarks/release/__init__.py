"""What makes the shipped weights, the reading's weights, and the tables in the documentation."""
