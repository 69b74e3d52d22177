"""What a trained network is and can do: predict, be measured, be saved and exchanged."""
