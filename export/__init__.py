"""From a head to files: meshes, videos, pictures, the report."""
