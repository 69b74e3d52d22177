"""How the pictures of `benchmarks.photographs` are drawn: strokes, paper, light, surroundings, camera, file."""
