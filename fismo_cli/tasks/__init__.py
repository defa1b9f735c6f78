"""Tasks: data, loss and metrics of image classification and language modelling, behind one small interface."""
