//! What people look at: progress, metrics, pictures.
