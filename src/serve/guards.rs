//! `Guards`: the files that say who may ask and what the server shows, read at start and again when
//! the operator says so.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use kvant_server::{Access, Keys, Quota, Tls};

use crate::config::AccessConfig;

/// Keys and certificate of a server.
#[derive(Clone, Debug)]
pub(crate) struct Guards {
    config: AccessConfig,
    pub(crate) access: Arc<Access>,
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Guards {
    pub(crate) fn read(config: &AccessConfig) -> Result<Self> {
        let access = match keys(config)? {
            None => Access::default(),
            Some(keys) => {
                let (count, admin) = keys.count();
                tracing::info!("{count} keys, {admin} of them for /admin");
                Access::with_keys(keys)
            }
        };
        let AccessConfig { tls_certificate, tls_key, .. } = config;
        let tls = match (tls_certificate.is_empty(), tls_key.is_empty()) {
            (true, true) => None,
            (false, false) => {
                let (chain, key) = pair(config)?;
                Some(Arc::new(Tls::new(&chain, &key).map_err(|why| of_pair(config, &why))?))
            }
            (true, false) => bail!("access.tls_key is set, access.tls_certificate is not"),
            (false, true) => bail!("access.tls_certificate is set, access.tls_key is not"),
        };
        Ok(Self { config: config.clone(), access: Arc::new(access), tls })
    }

    /// Whether there are keys.
    pub(crate) fn wants_keys(&self) -> bool {
        !self.config.keys_file.is_empty()
    }

    /// Takes what the files say now; what is wrong stays as it was.
    pub(crate) fn reload(&self) {
        match keys(&self.config) {
            Ok(None) => {}
            Ok(Some(keys)) => {
                let (count, admin) = keys.count();
                self.access.replace(keys);
                tracing::info!("keys read again: {count} keys, {admin} of them for /admin");
            }
            Err(error) => tracing::error!("the keys stay as they were: {error:#}"),
        }
        let Some(tls) = &self.tls else { return };
        let replaced = pair(&self.config).and_then(|(chain, key)| {
            tls.replace(&chain, &key).map_err(|why| of_pair(&self.config, &why))
        });
        match replaced {
            Ok(()) => tracing::info!("certificate read again"),
            Err(error) => tracing::error!("the certificate stays as it was: {error:#}"),
        }
    }
}

fn keys(config: &AccessConfig) -> Result<Option<Keys>> {
    let path = &config.keys_file;
    if path.is_empty() {
        return Ok(None);
    }
    let text = fs::read_to_string(path)
        .with_context(|| format!("access.keys_file: {path} cannot be read"))?;
    let quota =
        Quota { per_minute: config.requests_per_minute, concurrent: config.concurrent_requests };
    let keys = Keys::parse(&text, quota).map_err(|why| anyhow!("{path}: {why}"))?;
    Ok(Some(keys))
}

fn pair(config: &AccessConfig) -> Result<(Vec<u8>, Vec<u8>)> {
    let read = |name: &str, path: &str| {
        fs::read(path).with_context(|| format!("access.{name}: {path} cannot be read"))
    };
    let AccessConfig { tls_certificate, tls_key, .. } = config;
    Ok((read("tls_certificate", tls_certificate)?, read("tls_key", tls_key)?))
}

fn of_pair(config: &AccessConfig, why: &str) -> anyhow::Error {
    anyhow!("{} and {}: {why}", config.tls_certificate, config.tls_key)
}
