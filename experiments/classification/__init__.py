"""Image classification: images on disk -> augmented batches -> training -> accuracy and confusion."""
