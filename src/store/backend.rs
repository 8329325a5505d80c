//! From `archive.url` and `[archive.options]` to an open backend, rooted at the archive.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, PoisonError};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::ReqwestConnector;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};
use url::Url;

use super::deadline;
use super::disk::Disk;
use super::fault;
use super::listing::Sound;
use super::patient::{Patient, RETRY_FOR};
use super::uploads::Uploads;
use crate::config::Archive;
use crate::error::{Error, Kind, Result, ResultExt};

/// How often a request is sent again by the cloud's client, with growing pauses from 0.1 s. Together with the time
/// below it rides out a moment's trouble; a longer outage comes back as [`Kind::Unavailable`], for the caller to count,
/// to tell and to try again.
const RETRIES: usize = 7;

/// Whether `archive` can be opened, as far as its URL and options say; makes nothing.
pub(super) fn validate(archive: &Archive) -> Result<()> {
    if archive.url.scheme() == "file" { local_root(archive).map(drop) } else { open(archive).map(drop) }
}

/// An open backend.
pub(super) struct Backend {
    pub(super) objects: Arc<dyn ObjectStore>,
    /// Of `s3://` alone.
    pub(super) uploads: Option<Uploads>,
}

/// Opens the backend of `archive`.
pub(super) fn open(archive: &Archive) -> Result<Backend> {
    if archive.url.scheme() == "s3" { s3(archive) } else { Ok(Backend { objects: other(archive)?, uploads: None }) }
}

fn s3(archive: &Archive) -> Result<Backend> {
    let url = &archive.url;
    warn_of_profile(archive);
    let connector = connector(archive);
    let last = connector.last();
    let builder = AmazonS3Builder::from_env().with_url(bucket_url(url)?).with_retry(retry());
    let set = |builder: AmazonS3Builder, key: AmazonS3ConfigKey, value: &str| builder.with_config(key, value);
    let builder = with_options(archive, builder.with_http_connector(connector), "aws_", set)?;
    let patient = patient(builder.build(), url)?;
    let (bucket, root) = (patient.inner(), folder(url)?);
    let client = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let uploads = client.map(|client| Uploads { bucket, client, root });
    Ok(Backend { objects: rooted(patient, url)?, uploads })
}

fn other(archive: &Archive) -> Result<Arc<dyn ObjectStore>> {
    let url = &archive.url;
    match url.scheme() {
        "file" => local(archive),
        "memory" => {
            no_options(archive)?;
            rooted(InMemory::new(), url)
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(bucket_url(url)?).with_retry(retry());
            let builder = builder.with_http_connector(connector(archive));
            let set =
                |builder: GoogleCloudStorageBuilder, key: GoogleConfigKey, value: &str| builder.with_config(key, value);
            rooted(patient(with_options(archive, builder, "google_", set)?.build(), url)?, url)
        }
        "az" => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(bucket_url(url)?).with_retry(retry());
            let builder = builder.with_http_connector(connector(archive));
            let set =
                |builder: MicrosoftAzureBuilder, key: AzureConfigKey, value: &str| builder.with_config(key, value);
            rooted(patient(with_options(archive, builder, "azure_", set)?.build(), url)?, url)
        }
        other => Err(Error::new(Kind::Config, format!("archive.url: there is no store for {other}://"))
            .hint("use file://, s3://, gs://, az:// or memory://")),
    }
}

/// Returns how the store is asked. Who sets a time-out for whole requests gets it.
fn connector(archive: &Archive) -> Sound {
    let times_out = archive.options.contains_key("timeout");
    Sound::new(if times_out { Box::new(ReqwestConnector::default()) } else { Box::new(deadline::Connector) })
}

/// object_store takes keys and roles, and no profile: whoever has set one would look for the mistake elsewhere.
fn warn_of_profile(archive: &Archive) {
    let set = |name| std::env::var_os(name).is_some();
    let given = set("AWS_ACCESS_KEY_ID") || archive.options.contains_key("aws_access_key_id");
    if set("AWS_PROFILE") && !given {
        tracing::warn!(
            hint = "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where the platform gives a role; \
                    `aws configure export-credentials --format env` prints a profile's",
            "AWS_PROFILE is set and is not read, and neither are the files below ~/.aws"
        );
    }
}

/// The directory that the URL names.
pub(super) fn local_root(archive: &Archive) -> Result<PathBuf> {
    no_options(archive)?;
    archive.url.to_file_path().map_err(|()| {
        Error::new(Kind::Config, format!("archive.url: {} does not name a local directory", archive.url))
            .hint("write an absolute path with three slashes, as in file:///var/lib/tidelog/archive")
    })
}

fn local(archive: &Archive) -> Result<Arc<dyn ObjectStore>> {
    let (root, url) = (local_root(archive)?, &archive.url);
    make_directory(&root).map_err(|error| {
        Error::io(error, format!("cannot make the archive's directory {}", root.display()))
            .hint("make the directory by hand and give it to the user that runs tidelog")
    })?;
    let files = LocalFileSystem::new_with_prefix(&root);
    // fsync: an object is on the disk, and its name in its directory, before the call returns.
    let files = files.map_err(|error| fault::translate(error, format!("cannot open {url}")))?.with_fsync(true);
    Ok(Arc::new(Disk::new(files, root)))
}

/// Makes the directory and those above it, and makes their names durable.
fn make_directory(root: &std::path::Path) -> std::io::Result<()> {
    let missing: Vec<PathBuf> =
        root.ancestors().take_while(|directory| !directory.exists()).map(PathBuf::from).collect();
    std::fs::create_dir_all(root)?;
    for made in missing {
        if let Some(above) = made.parent() {
            std::fs::File::open(above)?.sync_all()?;
        }
    }
    Ok(())
}

fn no_options(archive: &Archive) -> Result<()> {
    match archive.options.keys().next() {
        None => Ok(()),
        Some(key) => Err(Error::new(
            Kind::Config,
            format!("archive.options.{key}: {}:// takes no options", archive.url.scheme()),
        )
        .hint("remove the key; only s3://, gs:// and az:// have options")),
    }
}

/// Hands every option to the builder; a key that it does not know is refused by name.
fn with_options<B, K: FromStr>(
    archive: &Archive,
    builder: B,
    prefix: &str,
    set: impl Fn(B, K, &str) -> B,
) -> Result<B> {
    archive.options.iter().try_fold(builder, |builder, (key, value)| {
        let known = K::from_str(key).map_err(|_| {
            let scheme = archive.url.scheme();
            let message = format!("archive.options.{key}: {scheme}:// has no such option");
            Error::new(Kind::Config, message).hint(format!(
                "options of {scheme}:// are object_store's, in lower case, and begin with {prefix} (for example \
                 {prefix}allow_http)"
            ))
        })?;
        Ok(set(builder, known, value))
    })
}

/// The options that [`open`] would use, those of the environment included.
pub(super) fn options_in_force(archive: &Archive) -> BTreeMap<String, String> {
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let known: fn(&str) -> bool = match archive.url.scheme() {
        "s3" => |name| name.starts_with("aws_") && AmazonS3ConfigKey::from_str(name).is_ok(),
        "gs" => |name| name.starts_with("google_") && GoogleConfigKey::from_str(name).is_ok(),
        "az" => |name| name.starts_with("azure_") && AzureConfigKey::from_str(name).is_ok(),
        _ => |_| false,
    };
    let given = variables.map(|(name, value)| (name.to_ascii_lowercase(), value)).filter(|(name, _)| known(name));
    given.chain(archive.options.clone()).collect()
}

/// The part of the URL that names the bucket.
fn bucket_url(url: &Url) -> Result<String> {
    let bucket = url.host_str().unwrap_or_default();
    if bucket.is_empty() {
        return Err(Error::new(Kind::Config, format!("archive.url: {url} names no bucket"))
            .hint(format!("write {}://bucket/folder", url.scheme())));
    }
    if url.password().is_some() || !url.username().is_empty() {
        return Err(Error::new(Kind::Config, "archive.url: credentials do not belong into the URL")
            .hint("use the cloud's usual environment variables or [archive.options]"));
    }
    Ok(format!("{}://{bucket}", url.scheme()))
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_FOR, ..RetryConfig::default() }
}

fn patient<S: ObjectStore>(store: object_store::Result<S>, url: &Url) -> Result<Patient<S>> {
    store.map(Patient::new).or_err(Kind::Config, || format!("archive.options: cannot open {url}"))
}

/// Returns where the archive lies in its bucket.
fn folder(url: &Url) -> Result<Path> {
    Path::from_url_path(url.path())
        .or_err(Kind::Config, || format!("archive.url: {:?} cannot be a folder of objects", url.path()))
}

/// Puts the path of `url` before every key.
fn rooted<S: ObjectStore>(store: S, url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let folder = folder(url)?;
    Ok(if folder.is_root() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, folder)) })
}
