"""The embedded sample: 1200 images of shirts and T-shirts from Fashion-MNIST, enough to try a grid without any data."""
