"""From image files to digits: find the ink, draw it as MNIST would, let the network score it."""
