"""Networks that take [0, 1] images, normalise inside and return logits: CIFAR ResNets, VGG-16, ResNet-50 and -101."""
