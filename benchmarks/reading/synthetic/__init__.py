"""How the pictures of `benchmarks.reading.photographs` are drawn: strokes, paper, light, surroundings, camera, file."""
