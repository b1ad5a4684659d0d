//! A disk that refuses: at every operation, for once or from then on, with an error or for lack of room.
