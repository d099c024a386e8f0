module "values" {
  source = "../values"

  name             = var.release
  image_repository = "${local.registry}/sie-server"

  models_volume = {
    csi = {
      driver   = "gcsfuse.csi.storage.gke.io"
      readOnly = true
      volumeAttributes = {
        bucketName   = google_storage_bucket.models.name
        mountOptions = "implicit-dirs,uid=10001,gid=10001"
      }
    }
  }

  pod_annotations = { "gke-gcsfuse/volumes" = "true" } # adds the container that mounts the bucket

  # That container reads the bucket at Google's private addresses, with a token of the metadata server.
  storage_egress = [
    { cidr = local.private_apis_cidr, port = 443 },
    { cidr = "169.254.169.254/32", port = 80 },
    { cidr = "169.254.169.252/32", port = 988 },
  ]

  pools = {
    for name, pool in var.pools : name => {
      vcpus        = local.machines[name].guest_cpus
      memory_mib   = local.machines[name].memory_mb
      gpus         = local.gpus[name] == null ? 0 : local.gpus[name].guest_accelerator_count
      min_replicas = pool.min_replicas
      max_replicas = pool.max_nodes * (local.gpus[name] == null ? 1 : local.gpus[name].guest_accelerator_count)
      taints       = pool.taints
    }
  }
}

locals {
  registry = "${var.region}-docker.pkg.dev/${var.project_id}/${google_artifact_registry_repository.images.repository_id}"
}

output "cluster_name" {
  description = "Name of the cluster, for gcloud container clusters get-credentials."
  value       = module.cluster.name
}

output "region" {
  description = "Region of the cluster."
  value       = var.region
}

output "project_id" {
  description = "Project of the cluster."
  value       = var.project_id
}

output "registry" {
  description = "Repository to which the image of the server is pushed."
  value       = "${local.registry}/sie-server"
}

output "models_bucket" {
  description = "Bucket of models: one directory per model, as in models_dir."
  value       = google_storage_bucket.models.name
}

output "values" {
  description = "Values of the chart deploy/helm/sie."
  value       = module.values.yaml
}
