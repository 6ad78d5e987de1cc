"""The EG3D generator, its renderer and discriminator: tensors in, tensors out."""
