"""Classification of image files by an exported network, see :class:`sftn_fast.predict.classifier.Classifier`."""
