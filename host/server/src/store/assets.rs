//! Files that clients of API v2 brought, by their ids and by what is in them.

use super::{Result, Store};
use rusqlite::{OptionalExtension, Row, params};

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    pub id: String,
    /// `blake3:` and 64 hexadecimal digits.
    pub hash: String,
    /// In bytes.
    pub size: u64,
    pub content_type: String,
    /// What its client calls it.
    pub file_path: String,
    /// Where it is in the input folder.
    pub name: String,
    /// Whether the file came with it; otherwise it was there before, and stays when the asset goes.
    pub owned: bool,
    /// Milliseconds since 1970.
    pub created: i64,
}

const COLUMNS: &str = "id, hash, size, content_type, file_path, name, owned, created";

fn asset(row: &Row) -> rusqlite::Result<Asset> {
    Ok(Asset {
        id: row.get(0)?,
        hash: row.get(1)?,
        size: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
        content_type: row.get(3)?,
        file_path: row.get(4)?,
        name: row.get(5)?,
        owned: row.get(6)?,
        created: row.get(7)?,
    })
}

impl Store {
    /// # Errors
    /// The store cannot be read.
    pub fn asset(&self, id: &str) -> Result<Option<Asset>> {
        let sql = format!("SELECT {COLUMNS} FROM assets WHERE id = ?1");
        Ok(self.lock().prepare_cached(&sql)?.query_row([id], asset).optional()?)
    }

    /// The one with these bytes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn asset_of_hash(&self, hash: &str) -> Result<Option<Asset>> {
        let sql = format!("SELECT {COLUMNS} FROM assets WHERE hash = ?1");
        Ok(self.lock().prepare_cached(&sql)?.query_row([hash], asset).optional()?)
    }

    /// Adds one; an older one with the same bytes, whose file is gone, makes room and gives it its id.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn add_asset(&self, new: Asset) -> Result<Asset> {
        let size = i64::try_from(new.size).unwrap_or(i64::MAX);
        let sql = format!(
            "INSERT INTO assets ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (hash) \
             DO UPDATE SET size = ?3, content_type = ?4, file_path = ?5, name = ?6, owned = ?7 \
             RETURNING {COLUMNS}"
        );
        let Asset { id, hash, content_type, file_path, name, owned, created, .. } = new;
        let values = params![id, hash, size, content_type, file_path, name, owned, created];
        Ok(self.lock().prepare_cached(&sql)?.query_row(values, asset)?)
    }

    /// # Errors
    /// The store cannot be written.
    pub fn remove_asset(&self, id: &str) -> Result<()> {
        self.lock().prepare_cached("DELETE FROM assets WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}
