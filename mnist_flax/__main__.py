"""`python -m mnist_flax`: which commands there are."""

COMMANDS = {
    "train": "train a network, or several at once, or resume",
    "evaluate": "measure a trained network: accuracy, loss, calibration, every class",
    "predict": "say which digit an image file shows",
    "demo": "open a page to draw digits on, which shows what the network sees",
    "report": "draw curves, mistakes, calibration, filters and activations",
    "export": "write it as safetensors, PyTorch state dict, StableHLO or ONNX",
    "import_weights": "read the PyTorch original's weights",
    "summary": "print the network's layers",
}


def main() -> None:
    """The command line."""
    print("A 12,534-parameter MNIST classifier in JAX. Commands (each has --help):\n")
    for name, purpose in COMMANDS.items():
        print(f"  python -m mnist_flax.{name:<16}{purpose}")


if __name__ == "__main__":
    main()
