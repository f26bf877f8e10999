//! The lines that docs/install.md gives an operator, run here as they stand there.

/// The section on installation, by its blocks of shell.
pub struct Installation {
    /// Puts the network's configuration into etcd.
    pub network: &'static str,
    /// Installs the package on a host.
    pub install: &'static str,
    /// Looks at what it has done.
    pub look: &'static str,
    /// Replaces flanneld.
    pub replace: &'static str,
    /// Gives the node back to flanneld.
    pub back: &'static str,
}

impl Installation {
    /// Finds them, and panics if the section is not built like that.
    pub fn documented() -> Self {
        let section = DOCUMENT.split("\n## ").find(|section| section.starts_with("Install on your hosts\n"));
        let section = section.expect("a section 'Install on your hosts' in docs/install.md");
        let mut blocks = section.split("\n```").skip(1).step_by(2).map(|block| {
            block.strip_prefix("sh\n").unwrap_or_else(|| panic!("a block that is not of shell: {block}"))
        });
        let mut next = |holds: &str| {
            let block = blocks.next().unwrap_or_else(|| panic!("docs/install.md has no block with {holds}"));
            assert!(block.contains(holds), "no {holds} in this block of docs/install.md:\n{block}");
            block
        };
        let found = Self {
            network: next("etcdctl"),
            install: next("apt-get install"),
            look: next("overlayctl status"),
            replace: next("systemctl disable flanneld"),
            back: next("overlayctl cleanup"),
        };
        let more = blocks.next();
        assert!(more.is_none(), "docs/install.md has a block that nobody tries: {more:?}");
        found
    }
}

const DOCUMENT: &str = include_str!("../../../../docs/install.md");

#[cfg(test)]
mod tests {
    use super::Installation;

    #[test]
    fn the_section_is_there_with_all_its_blocks() {
        let installation = Installation::documented();
        assert!(installation.network.contains(crate::ETCD) && installation.network.contains(crate::PREFIX));
        assert!(installation.install.contains(crate::INTERFACE));
    }
}
