"""What a network makes of images that are damaged, or show no digit."""
