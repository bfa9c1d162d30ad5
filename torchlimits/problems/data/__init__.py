"""The spectrum of inputs: covariances, their blocks, and what data say of them."""
