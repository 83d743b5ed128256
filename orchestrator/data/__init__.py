"""From labelled images in a store to batches of tensors."""
