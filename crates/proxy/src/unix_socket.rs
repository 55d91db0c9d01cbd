//! A Unix socket at which clients of this host connect.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A Unix socket with its file, which goes when this does.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    pub listener: mio::net::UnixListener,
    pub path: PathBuf,
    /// Device and inode of the file: another process may have put its own there meanwhile.
    file: (u64, u64),
}

impl UnixSocket {
    /// Listens at a path. A socket that nobody listens at any more is replaced.
    ///
    /// Args: `mode` the file's permissions, which are what lets clients in.
    ///
    /// # Errors
    /// `AddrInUse` where somebody listens there, or something else lies there.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        if let Ok(found) = fs::symlink_metadata(path) {
            let is_left_over = found.file_type().is_socket()
                && std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            if !is_left_over {
                return Err(io::ErrorKind::AddrInUse.into());
            }
        }
        // Under a name of its own until its permissions are right: nobody gets in before.
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let passing = PathBuf::from(name);
        let _ = fs::remove_file(&passing);
        let listener = std::os::unix::net::UnixListener::bind(&passing)?;
        let placed = fs::set_permissions(&passing, fs::Permissions::from_mode(mode))
            .and_then(|()| fs::metadata(&passing))
            .and_then(|about| fs::rename(&passing, path).map(|()| (about.dev(), about.ino())));
        let file = placed.inspect_err(|_| {
            let _ = fs::remove_file(&passing);
        })?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: mio::net::UnixListener::from_std(listener),
            path: path.to_owned(),
            file,
        })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("keyheat-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn a_socket_that_was_left_over_is_replaced_and_one_in_use_is_not() {
        let folder = folder("sockets");
        let path = folder.join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // its file stays
        let first = UnixSocket::bind(&path, 0o640).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let taken = UnixSocket::bind(&path, 0o600).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());
        fs::write(&path, "somebody's").unwrap();
        let taken = UnixSocket::bind(&path, 0o600).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let folder = folder("successor");
        let path = folder.join("s");
        let first = UnixSocket::bind(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let second = UnixSocket::bind(&path, 0o600).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        fs::remove_dir_all(&folder).unwrap();
    }
}
