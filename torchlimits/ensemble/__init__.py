"""Many independent runs of online SGD."""
