"""What is read in pictures, and what it gains to train on digits of one's own."""
