"""What commands are told, and where they speak: options, their files, and the terminal."""
