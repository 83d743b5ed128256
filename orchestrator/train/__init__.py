"""One trial on one worker -> Result. Knows Keras, knows nothing of Ray."""
