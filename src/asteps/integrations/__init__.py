"""Other people's libraries and services, one file each; a file needs only what it is named for."""
