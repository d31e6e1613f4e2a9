"""Data sets as arrays on the device, and augmentation there."""
