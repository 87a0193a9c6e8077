"""The short convolution over tokens in front of a linear attention or a state space."""
